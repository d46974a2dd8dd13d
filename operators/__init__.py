"""HOW a plan is carried out on a network, and how accuracy is won back."""
