# SPDX-License-Identifier: Apache-2.0
from lamp_trt.cli import main

raise SystemExit(main())
