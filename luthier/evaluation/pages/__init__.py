"""Pages that stand alone: no outside resource, a strict content security policy, data never part of the markup."""
