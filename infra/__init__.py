"""The Pulumi resources of the stack, one module a part; `stack.py` puts them together."""
