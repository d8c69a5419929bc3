"""1-Lipschitz blocks to build networks from."""
