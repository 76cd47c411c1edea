"""Whole networks: layers in a stack, between a task's embedding and its read-out."""
