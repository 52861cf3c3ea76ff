"""Measurements that anyone can repeat; nothing of the product imports them."""
