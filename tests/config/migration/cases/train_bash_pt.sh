#!/bin/bash
# two cards
MODEL=openlm/base-1b
deepspeed --num_gpus 4 --master_port=9901 src/train_bash.py \
    --stage pt \
    --do_train \
    --model_name_or_path ${MODEL} \
    --dataset wiki_demo \
    --finetuning_type lora \
    --lora_target q_proj,v_proj \
    --output_dir ${OUT:-saves/pt} \
    --overwrite_cache \
    --per_device_train_batch_size 4 \
    --gradient_accumulation_steps 4 \
    --lr_scheduler_type cosine \
    --logging_steps 10 \
    --save_steps 1000 \
    --learning_rate 5e-5 \
    --num_train_epochs 3.0 \
    --plot_loss \
    --deepspeed ds_config.json \
    --fp16 > train.log 2>&1
