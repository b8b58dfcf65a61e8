"""Names of other trainers that no key here stands for, each with what to write, or why nothing is needed.

A name that a key does stand for is that key's own fact (`also` in table.py). Held by tests/config/test_elsewhere.py.
"""

from __future__ import annotations

ANSWERS = {
    # the objective
    "rpo_alpha pref_ftx":
        "It is the weight of imitation in a sum: objective=irpo has 1; for another, objective=sum with "
        'objective.parts=[{name="dpo"},{name="nll"}] and objective.weights=[1,ALPHA].',
    "pref_bco_weight":
        'It is the weight of bco in a sum: objective=sum with objective.parts=[{name="dpo"},{name="bco"}] and '
        "objective.weights=[1,WEIGHT].",
    "use_weighting dpo_use_weighting": "Write objective=wpo.",
    "dpo_norm_loss": "Write objective=ln_dpo.",
    "orpo_alpha orpo_lambda": "Write objective.odds_weight, with objective=orpo.",
    "discopop_tau": "DiscoPOP is not here; a callable that says what it reads is an objective, in Python.",
    "label_smoothing_factor": "Imitation has no smoothing; that of preferences is objective.flip.",
    "use_dft_loss use_asft_loss use_eaft_loss":
        "Imitation is objective=nll, without a weight of its own for each token.",
    "reward_model_type": "A reward model is a folder, reward.model; a function is reward.function.",
    "process_reward_model": "A score is one of a whole response; objective=reward trains a model of such scores.",
    "num_labels": "A reward model has one score; objective=reward trains it.",
    # the reference
    "precompute_ref_log_probs": "It is always so: reference=stored scores each response once, before training.",
    "sync_ref_model": "Write reference=moving; reference.alpha and reference.update_every say how far and how often.",
    # rows and what of them counts
    "completion_only_loss train_on_inputs train_on_prompt dataset_kwargs":
        "Only tokens of responses are learned from; a row with a text alone is learned from as a whole.",
    "message_field_training message_field_training_detail roles_to_train train_on_last_step_only":
        'Turns of the assistant are learned from; one with "weight": 0 is not, and data.turns=last takes the '
        "last.",
    "max_prompt_length max_prompt_len max_source_length":
        "The prompt alone has no limit: data.max_tokens counts the prompt and one response.",
    "max_target_length": "The response alone has no limit: data.max_tokens counts the prompt and one response.",
    "drop_system_message":
        "A system text of a row stays; data.columns.system= leaves out a key of that name.",
    "train_on_eos train_on_eot": "A response is scored with its end token.",
    "input_key prompt_key label_key reward_fn_key "
    "field_messages field_prompt field_chosen field_rejected field_label field_system field_tools text_column "
    "dataset_text_field message_property_mappings field_human field_model field_instruction field_input "
    "field_output field_completion field_thinking ds_type conversation message_field_role message_field_content "
    "prompt_format chosen_format rejected_format":
        "Rows are known by their keys; data.columns names other ones, such as data.columns.is_safe=label.",
    "remove_unused_columns label_names": "A key that is not read is told; data.columns.KEY= leaves it out.",
    "dataset_train_split dataset_test_split dataset_split split":
        "Write it behind the name: data.train=NAME:SPLIT, data.evaluate=NAME:SPLIT.",
    "dataset_config subset": "Load it in Python, and give data.train the split that it has.",
    "mix_strategy stopping_strategy":
        "Files are joined and shuffled, data.train=[FIRST, SECOND]; data.shares says how much of each an epoch takes.",
    "streaming dataset_streaming": "All rows are read before the first step, so that steps and reference are known.",
    "shuffle shuffle_dataset disable_shuffling shuffle_merged_datasets shuffle_before_merging_datasets "
    "curriculum_sampling":
        "The order of rows follows from seed.",
    "eos_token pad_token unk_token bos_token special_tokens added_tokens add_tokens add_special_tokens "
    "new_special_tokens resize_vocab resize_token_embeddings_to_32x eot_tokens additional_special_tokens "
    "mean_resizing_embeddings":
        "The tokenizer stays as it is; data.template says how turns end.",
    "image_max_pixels image_min_pixels image_size processor_type media_dir freeze_vision_tower is_encoder_decoder":
        "Causal models of text are trained; rows with pictures are refused.",
    # batches and speed
    "packing sample_packing neat_packing packing_strategy padding_free dpo_padding_free batch_flattening "
    "eval_packing eval_sample_packing pad_to_multiple_of pad_to_sequence_len multipack_real_batches "
    "sample_packing_bin_size sample_packing_group_size padding_value":
        "Not needed: rows are packed without padding wherever the model allows it (model.layout), and none sees "
        "another.",
    "group_by_length length_column_name train_sampling_strategy":
        "Not needed: a pack holds a number of tokens, and nothing is padded wherever the model allows it "
        "(model.layout).",
    "attn_implementation flash_attention flash_attn flash_attention_2 sdp_attention sdpa_attention "
    "eager_attention flex_attention xformers_attention sage_attention shift_attn s2_attention "
    "use_flash_attention_2":
        "Not needed: attention over shared prefixes is chosen by device, precision and model.",
    "use_liger_kernel enable_liger_kernel liger_kernel_config dpo_use_liger_kernel use_liger_loss liger_rope "
    "liger_rms_norm liger_glu_activation liger_fused_linear_cross_entropy use_unsloth lora_mlp_kernel "
    "lora_qkv_kernel lora_o_kernel use_logits_to_keep dpo_use_logits_to_keep flash_attn_cross_entropy "
    "flash_attn_fuse_mlp flash_attn_rms_norm lora_embedding_kernel chunked_cross_entropy cut_cross_entropy "
    "use_kernels tiled_mlp fused_attn_kernel":
        "Not needed: no loss holds tokens x vocabulary; norms, rotary, gated layers and adapters are fused where "
        "that gives the model's own numbers.",
    "torch_compile torch_compile_backend torch_compile_mode": "No key: the model is not compiled.",
    "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_persistent_workers "
    "dataloader_drop_last dataset_num_proc dataset_processes preprocessing_num_workers preprocessing_batch_size "
    "dataset_prepared_path overwrite_cache tokenized_path buffer_size skip_prepare_dataset "
    "dataloader_multiprocessing_context dataloader_in_order dataset_keep_in_memory":
        "Not needed: rows are read and tokenized once, before the first step, and no worker feeds it.",
    "fp16 float16 fp16_full_eval":
        "Products are in bfloat16 or float32, model.compute; float16 would need a scale of the loss.",
    "bf16_full_eval eval_accumulation_steps prediction_loss_only eval_do_concat_batches eval_use_gather_object "
    "batch_eval_metrics eval_delay compute_accuracy":
        "Held-out rows are measured as training rows are.",
    "tf32 fp8 cast_lm_head_to_fp32 upcast_lmhead_output upcast_layernorm":
        "Products are in bfloat16 or float32, model.compute; probabilities are always in float32 or wider.",
    "average_tokens_across_devices": "A loss is divided once, by the rows of the whole step on all processes.",
    "use_bnb_nested_quant double_quantization bnb_4bit_quant_storage quantization_type quantization_device_map":
        "model.weights=nf4 keeps scales of 8 bits.",
    "activation_offloading layer_offloading offload_folder low_cpu_mem_usage torch_empty_cache_steps gc_steps "
    "skip_memory_metrics":
        "No key: where memory runs out a pack is cut; model.checkpointing and ranks.shard save more.",
    # the model
    "trust_remote_code": "Refused: code that comes with a model is never run; what transformers has is.",
    "gradient_checkpointing_kwargs activation_checkpointing_kwargs use_reentrant_gc use_unsloth_gc":
        "Write model.checkpointing=true; it has no options.",
    "lora_dropout dropout disable_dropout peft_dropout attention_dropout module_dropout":
        "There is no dropout, nor in an adapter: a token that responses share would need one mask for all.",
    "neftune_noise_alpha noisy_embedding_alpha": "No noise is added to embeddings.",
    "router_aux_loss_coef moe_aux_loss_coef output_router_logits": "No router loss is added, which the record notes.",
    "model_init_kwargs overrides_of_model_kwargs use_cache use_kv_cache base_model_config type_of_model "
    "overrides_of_model_config tokenizer_type use_fast_tokenizer":
        "Keys of the model are those of [model].",
    "rope_scaling": "A model is loaded as its config.json says; write it there.",
    "hub_token hf_hub_token use_auth_token hf_use_auth_token": "Write it to the environment as HF_TOKEN.",
    "trackio_space_id trackio_bucket_id trackio_static_space_id wandb_mode wandb_entity wandb_run_id "
    "mlflow_tracking_uri":
        "A tracker reads its own environment, such as TRACKIO_SPACE_ID.",
    "cache_dir": "Write it to the environment as HF_HOME.",
    "use_peft peft peft_config lora finetuning_type qlora": "Give the run an [adapter], such as adapter.rank=16.",
    "loftq_config pissa_iter pissa_convert relora oft_rank oft_target peft_layer_replication":
        "An adapter is adapter.kind=lora or dora, and adapter.start says how it begins.",
    "lora_bias lora_task_type task_type lora_fan_in_fan_out create_new_adapter":
        "Not needed: [adapter] trains A and B.",
    "lora_rank_pattern lora_alpha_pattern rank_pattern alpha_pattern":
        "Every layer has adapter.rank and adapter.alpha.",
    "peft_layers_to_transform layers_to_transform": "adapter.targets names layers, and may name each of them whole.",
    "merge_lora export_dir export_size": "Write `preftune export ADAPTER FOLDER`.",
    # the optimizer
    "optimizer optim_args optim_target_modules use_adam_mini use_galore use_apollo use_badam use_muon galore_rank "
    "galore_target apollo_rank badam_mode":
        "AdamW is the only optimizer; optim.state=int8 keeps its moments in 8 bits.",
    "lr_scheduler_kwargs lr_quadratic_warmup cosine_constant_lr_ratio":
        "Write optim.floor, or optim.decay of optim.schedule=wsd.",
    "embedding_lr embedding_lr_scale lr_groups loraplus_lr_embedding":
        "All weights have optim.lr; B of an adapter has adapter.ratio times it, and a value model value.lr.",
    # draws
    "stop stop_strings stop_token_ids stop_sequences":
        "A response ends with the end token of the model or of its template; there are no other stops.",
    "log_completions num_completions_to_print log_unique_prompts log_val_generations rollout_data_dir":
        "What each phase has drawn stands as text, with its scores, in phases/ of OUT; evaluate.samples is of held-out "
        "prompts.",
    "adv_estimator advantage_estimator algorithm": "Write for instance objective=grpo, rloo, reinforce_pp or ppo.",
    "kl_loss_coef use_kl_loss kl_loss_type use_kl_in_reward kl_estimator kl_penalty":
        "The KL is in the reward of each token, and objective.beta is its weight.",
    "importance_sampling_level": "Write objective=gspo for the ratio of a response, and grpo for that of each token.",
    "apply_chat_template": "A conversation goes through the chat template, and a prompt that is text never does.",
    "top_p top_k min_p repetition_penalty generation_kwargs do_sample num_beams cache_implementation":
        "Responses are drawn from the policy itself, which rollout.temperature alone changes.",
    "delta use_bias_correction_kl vllm_importance_sampling_correction "
    "off_policy_mask_threshold vllm_importance_sampling_mode vllm_importance_sampling_clip_max "
    "vllm_importance_sampling_clip_min vllm_importance_sampling_cap "
    "vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg":
        "The ratio is of each token, and objective.clip bounds it on both sides.",
    "normalize_advantages whiten_advantages ppo_whiten_rewards whiten_rewards ppo_score_norm":
        "Advantages are whitened by objective=reinforce_pp, and divided by their group's deviation by "
        "objective.scale=group.",
    "mask_truncated_completions": "A response that was cut counts; reward.missing_end takes from its score.",
    "steps_per_generation num_mini_batches local_rollout_forward_batch_size":
        "A phase draws to rollout.tasks prompts, and each update takes batch.rows of them.",
    "entropy_coef entropy_coeff entropy_loss_coef "
    "use_adaptive_entropy top_entropy_quantile entropy_coef_min entropy_coef_max entropy_coef_delta "
    "entropy_target":
        "There is no bonus for entropy; the KL of objective.beta keeps some.",
    "ppo_target kl_target adap_kl_ctrl": "objective.beta stays what it is.",
    "reward_clip_range": "Clip in reward.function; no score is changed.",
    "multi_objective_aggregation": "The scores of several rewards are added, each times its reward.weight.",
    "max_tool_calling_iterations": "A draw is one response to its prompt, in which no tool is called.",
    "use_vllm vllm_mode vllm_server_port vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_maxlen "
    "use_transformers_paged vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex "
    "vllm_server_timeout vllm_group_port vllm_max_model_length use_transformers_continuous_batching "
    "transformers_continuous_batching_config ds3_gather_for_generation vllm_config vllm":
        "The process draws by itself; rollout.server=http://HOST:PORT names a vLLM server instead.",
    # the run and its record
    "resume_from_checkpoint auto_resume_from_checkpoints": "Add --resume to the command, with the same out.",
    "overwrite_output_dir": "Add --force to the command.",
    "ignore_data_skip restore_callback_states_from_checkpoint": "A resumed run goes on to the same bits.",
    "logging_steps logging_strategy logging_first_step include_num_input_tokens_seen plot_loss log_level "
    "disable_tqdm logging_nan_inf_filter log_multimodal log_completions_hub_repo "
    "log_on_each_node log_level_replica":
        "Every step is recorded, in OUT/metrics.jsonl, and drawn in OUT/report.html.",
    "eval_on_start val_before_train do_eval do_train do_predict evaluation":
        "Held-out rows are measured at the start and at the end.",
    "save_only_model save_safetensors enable_jit_checkpoint":
        "OUT/model is a model alone; OUT/checkpoints has what --resume needs.",
    "greater_is_better": "It follows from evaluate.best_by: of a score or an accuracy more is better, of a loss less.",
    "early_stopping_threshold": "A figure that is better by anything at all is better.",
    "push_to_hub hub_model_id hub_strategy hub_private_repo hub_revision hub_always_push push_dataset_to_hub "
    "export_hub_model_id":
        "Nothing is uploaded; OUT/model is a folder for `hf upload NAME OUT/model`.",
    "callbacks compute_metrics include_for_metrics":
        "In Python train(run, sinks=[function]) gives each event to yours.",
    "data_collator collator": "What a token counts stands in rows, as token_weights.",
    "ddp ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb local_rank world_size "
    "accelerator_config parallelism_config ignore_bias_buffers ddp_broadcast_buffers ddp_static_graph "
    "save_on_each_node use_ray ray_num_workers ray_init_kwargs master_addr master_port":
        "Start it under torchrun; ranks.shard says what the processes divide.",
    "sequence_parallel_degree context_parallel_size tensor_parallel_size ring_attn_func dp_shard_size":
        "Processes divide rows, and by ranks.shard weights and moments; none divides a sequence or a matrix "
        "product.",
    "full_determinism": "A run repeats to the same bits on a CPU; docs/cuda.md says what repeats on a GPU.",
    "loss_watchdog_threshold loss_watchdog_patience":
        "An update that is not finite is not applied, and three in a row end the run.",
    "debug": "What a run computed stands in its record; a fault ends it with a code of its own.",
    "trl": "Its keys stand here in [objective], [rollout] and [reward].",
}  # fmt: skip
"""Names, separated by blanks -> the answer to each of them."""
BY_NAME = {name: answer for names, answer in ANSWERS.items() for name in names.split()}


def spelled(name: str) -> str:
    """A name as it is looked up."""
    return name.lower().replace("-", "_")
