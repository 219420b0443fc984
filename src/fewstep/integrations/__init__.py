"""fewstep inside other libraries. Each module imports the one that it is for; nothing here does."""
