"""Engines that run a checkpoint on a CPU, and the contest between them."""
