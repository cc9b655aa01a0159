"""Studies of the two papers behind the zoo: one command each, resumable, small enough for two cores or at full size."""
