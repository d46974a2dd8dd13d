"""What COUNTS: evaluate a plan, the numbers, dominance, the front."""
