"""Whole networks: what their layers' norms say about them."""
