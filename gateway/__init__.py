"""Serving: answers a question with the smallest model that meets the request's SLO."""

import os

# uvloop runs the fork handlers of all libraries in a process that it starts (MagicStack/uvloop#749), and gRPC's crash
# there while other threads use gRPC: one worker or Triton in ten ended by signal 11 before it began. Nothing here
# uses gRPC after a fork. Read when gRPC is first used, so it is set before any module of ours imports it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
