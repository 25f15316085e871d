"""From LLaMA-Factory's configs, and DB-GPT-Hub's, to luthier's: `migrate()` in migrating.py, the keys in llama_factory.yaml."""
