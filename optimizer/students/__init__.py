"""Students: the elastic one, its slices, and those that are finished and exported."""
