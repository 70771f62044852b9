"""Adapters: simulations that people already have, driven through their own library interface."""
