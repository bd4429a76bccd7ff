# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of `lamp-trt`, one module each: DESCRIPTION, add_arguments(parser), run(args).

`run` is a few lines over a public function and imports its dependencies when called.
"""
