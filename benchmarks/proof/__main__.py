# SPDX-License-Identifier: Apache-2.0
import sys

from lamp_trt.benchmarks.proof.commands.command import main

sys.exit(main())
