"""Sparrow: a conversation with a small language model on a small CPU."""
