wandb offline # Close wandb
current_date=$(date +"%Y%m%d_%H%M")
train_log="dbgpt_hub_sql/output/logs/train_rm_${current_date}.log"
CUDA_VISIBLE_DEVICES=0,1 deepspeed --num_gpus 2  dbgpt_hub_sql/train/rm_train.py \
    --stage rm \
    --model_name_or_path maker/chat-7b \
    --do_train \
    --dataset example_rm_train \
    --max_source_length 1024 \
    --max_target_length 512 \
    --finetuning_type lora \
    --lora_target c_attn \
    --template chatml \
    --lora_rank 64 \
    --lora_alpha 32 \
    --output_dir dbgpt_hub_sql/output/adapter/rm-test \
    --overwrite_cache \
    --overwrite_output_dir \
    --num_train_epochs 0.05 \
    --plot_loss True \
    --quantization_bit 4 >> ${train_log}
    # --bf16
