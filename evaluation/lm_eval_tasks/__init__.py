"""Tasks for EleutherAI's evaluation harness: one YAML file each, and the functions that make their documents."""
