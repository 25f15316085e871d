"""What a run will take, before its weights are read: memory, time, disk; and what to change where it does not fit."""
