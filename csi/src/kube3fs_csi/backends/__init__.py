"""How a data root keeps volumes: one interface (`base`), two implementations, and who chooses (`choose`)."""
