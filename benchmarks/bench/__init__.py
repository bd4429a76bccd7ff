# SPDX-License-Identifier: Apache-2.0
"""`lamp-trt bench`: what is measured and how. benchmarks/report/ writes down what was found."""
