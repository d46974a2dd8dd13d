"""WHAT is compressed: the network, its data, its score."""
