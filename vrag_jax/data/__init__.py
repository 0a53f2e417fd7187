"""Questions, PageWorld, tokenizer, chat format and sequence packing."""
