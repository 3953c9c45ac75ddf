"""The operator's console, `llmctl`: the gateway from the shell, its status, problems, backups and usage."""
