# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt bench`: measurements of a bundle. benchmarks/report/ formats the results."""
