"""What training costs: FLOPs, estimates of recipes, measured steps."""
