"""What MAY change, layer by layer, and the plan that fixes one choice."""
