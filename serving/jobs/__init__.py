# SPDX-License-Identifier: Apache-2.0
"""Jobs: checked requests, the queue, the durable record, and the front that owns them."""
