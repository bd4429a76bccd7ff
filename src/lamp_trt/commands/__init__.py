# SPDX-License-Identifier: Apache-2.0
"""The sub-commands of `lamp-trt`, a module each: DESCRIPTION, add_arguments(parser), run(args).

`run` is a few lines over a public function; what it needs is imported when it is called.
"""
