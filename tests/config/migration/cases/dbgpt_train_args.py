"""A script that would do something if it were run."""

raise SystemExit("this file must never be run")

output = "dbgpt_hub/output/adapter/sql-lora"
train_args = {
    "model_name_or_path": "maker/code-13b",
    "do_train": True,
    "dataset": "example_text2sql_train",
    "max_source_length": 2048,
    "max_target_length": 512,
    "finetuning_type": "lora",
    "lora_target": "q_proj,v_proj",
    "template": "llama2",
    "lora_rank": 64,
    "lora_alpha": 32,
    "output_dir": output,
    "overwrite_cache": True,
    "overwrite_output_dir": True,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 16,
    "lr_scheduler_type": "cosine_with_restarts",
    "logging_steps": 50,
    "save_steps": 2000,
    "learning_rate": 2e-4,
    "num_train_epochs": 8,
    "plot_loss": True,
    "bf16": True,
}
predict_args = {
    "model_name_or_path": "maker/code-13b",
    "template": "llama2",
    "finetuning_type": "lora",
    "checkpoint_dir": "dbgpt_hub/output/adapter/sql-lora",
    "predicted_input_filename": "dbgpt_hub/data/example_text2sql_dev.json",
    "predicted_out_filename": "dbgpt_hub/output/pred/pred.sql",
}
