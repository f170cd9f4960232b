"""VBench, the official judge, behind a seam: its own interpreter, JSON in, JSON lines out.

Nothing here imports ``vbench``; what does lies under ``foreign/`` and runs in the environment that
``harness fetch vbench`` builds. Nothing under ``foreign/`` imports ``harness``.
"""
