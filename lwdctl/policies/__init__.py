"""What acts: policies that map the observations of many environments to actions."""
