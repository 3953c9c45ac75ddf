"""The operator's console, `llmctl`: the gateway from the shell, and what runs, is wrong, is kept and was used."""
