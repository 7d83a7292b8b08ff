"""What acts: policies that map observations of many slots to actions."""
