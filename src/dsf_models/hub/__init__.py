"""Model cards, provenance and the records that a checkpoint folder carries beside its weights."""
