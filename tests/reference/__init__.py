"""Short independent implementations, written from the papers, of what no library computes."""
