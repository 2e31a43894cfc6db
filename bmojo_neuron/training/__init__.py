"""How the default model was made: corpus, tokenizer, recall dialogues, recipe, loop, evaluation."""
