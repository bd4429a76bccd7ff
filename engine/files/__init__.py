# SPDX-License-Identifier: Apache-2.0
"""Files of users and of ours: texts, links, results that are whole or absent, caches."""
