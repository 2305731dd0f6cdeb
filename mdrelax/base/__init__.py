"""base: the ground floor: files, names, seeds, units, provenance, the allocator, and e3nn."""
