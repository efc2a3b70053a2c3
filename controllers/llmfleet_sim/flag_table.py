"""Every flag of `vllm serve` 0.32.0, as data: one flag a line, `KIND NAMES... [= CHOICES...]`.

Read from the argument parser of vLLM 0.32.0 itself. An indented line continues the one above.
Kinds: switch (no value), bool (`--x` and `--no-x`), int, float, size (1k, 25.6K, 2M), json, text;
`+` takes one or more values, `?` none or one, `append` may be repeated. Nothing but data is here.
"""

FLAG_TABLE = """
switch --headless
int --api-server-count -asc
text --config
switch --grpc
text+ --lora-modules
text --chat-template
text --chat-template-content-format = auto openai string
bool --trust-request-chat-template
bool --trust-request-mm-kwargs
json --default-chat-template-kwargs
text --response-role
bool --return-tokens-as-token-ids
bool --enable-auto-tool-choice
bool --exclude-tools-when-tool-choice-none
text --tool-call-parser
text --tool-parser-plugin
text --tool-strict-level = auto function parameter
text --tool-server
int --max-log-len
bool --enable-prompt-tokens-details
bool --enable-per-request-metrics
bool --enable-server-load-tracking
bool --enable-force-include-usage
int --sse-keep-alive-interval
bool --enable-tokenizer-info-endpoint
bool --enable-log-outputs
bool --enable-log-deltas
bool --cohere-is-reasoning-model
text --cohere-format
text --anthropic-disabled-thinking-effort = auto high low max medium none xhigh
bool --log-error-stack
bool --tokens-only
bool --enable-scale-out
text --fingerprint-mode = custom full hash none
text --fingerprint-value
text --host
int --port
int --grpc-port
int --data-parallel-supervisor-port
float --dp-supervisor-probe-interval-s
float --dp-supervisor-probe-timeout-s
int --dp-supervisor-probe-failure-threshold
text --uds
text --uvicorn-log-level = critical debug error info trace warning
bool --disable-uvicorn-access-log
text --disable-access-log-for-endpoints
bool --allow-credentials
json --allowed-origins
json --allowed-methods
json --allowed-headers
text+ --api-key
text --ssl-keyfile
text --ssl-certfile
text --ssl-ca-certs
bool --enable-ssl-refresh
int --ssl-cert-reqs
text --ssl-ciphers
text --root-path
append --middleware
bool --enable-request-id-headers
bool --disable-fastapi-docs
int --h11-max-incomplete-event-size
int --h11-max-header-count
bool --enable-offline-docs
bool --enable-flash-late-interaction
text --model
text --runner = auto draft generate pooling
text --convert = auto classify embed none
text --tokenizer
text --tokenizer-mode
bool --trust-remote-code
text --dtype = auto bfloat16 float float16 float32 half
int --seed
text --hf-config-path
text --allowed-local-media-path
text+ --allowed-media-domains
text --revision
text --code-revision
text --tokenizer-revision
size-or-auto --max-model-len
text --quantization -q
json --quantization-config
bool --allow-deprecated-quantization
bool --enforce-eager
bool --enable-return-routed-experts
bool --return-sampling-mask
int --max-logprobs
text --logprobs-mode = processed_logits processed_logprobs raw_logits raw_logprobs
bool --use-fp64-gumbel
bool --enable-trace-replay
bool --disable-sliding-window
bool --disable-cascade-attn
bool --skip-tokenizer-init
bool --enable-prompt-embeds
text+ --served-model-name
text --config-format
text? --hf-token
text --hf-overrides
json --model-class-overrides
json --pooler-config
text --generation-config
json --override-generation-config
bool --enable-sleep-mode
bool --sleep-mode-offload-cudagraph
text+ --sleep-preserve-parameter-names
bool --enable-cumem-allocator
bool --enable-nccl-comm-suspend
text --model-impl
text+ --logits-processors
text --io-processor-plugin
int --renderer-num-workers
text --load-format
text --download-dir
text --safetensors-load-strategy = eager lazy prefetch torchao
int --safetensors-prefetch-num-threads
size --safetensors-prefetch-block-size
text --model-loader-extra-config
text+ --ignore-patterns
bool --use-tqdm-on-load
text --pt-load-map-location
text --attention-backend
text --mamba-backend
text --mamba-ssu-algorithm = auto horizontal simple vertical
bool --enable-mamba-cache-stochastic-rounding
int --mamba-cache-philox-rounds
text --reasoning-parser
text --reasoning-parser-plugin
text --distributed-executor-backend
int --pipeline-parallel-size -pp
text --master-addr
int --master-port
int --nnodes -n
int --node-rank -r
int --distributed-timeout-seconds
int --cpu-distributed-timeout-seconds
bool --numa-bind
int+ --numa-bind-nodes
text+ --numa-bind-cpus
text --device-ids
int --tensor-parallel-size -tp
int --decode-context-parallel-size -dcp
text --dcp-comm-backend = a2a ag_rs
bool --dcp-q-replicate
int --dcp-kv-cache-interleave-size
int --cp-kv-cache-interleave-size
int --prefill-context-parallel-size -pcp
int --data-parallel-size -dp
int --data-parallel-rank -dpn
int --data-parallel-start-rank -dpr
int --data-parallel-size-local -dpl
text --data-parallel-address -dpa
int --data-parallel-rpc-port -dpp
text --data-parallel-backend -dpb
bool --data-parallel-hybrid-lb -dph
bool --data-parallel-external-lb -dpe
switch --data-parallel-multi-port-external-lb -dpm
bool --enable-hc-sp
bool --enable-expert-parallel -ep
bool --enable-batch-sharded-sampling
bool --enable-ep-weight-filter
text --all2all-backend = allgather_reducescatter deepep_high_throughput deepep_low_latency deepep_v2
    flashinfer_all2allv flashinfer_nvlink_one_sided flashinfer_nvlink_two_sided moonep mori_high_throughput
    mori_low_latency naive nixl_ep pplx
bool --enable-dbo
bool --enable-shm-tensor-arena
int --ubatch-size
bool --enable-elastic-ep
int --elastic-ep-max-dp-size
int --dbo-decode-token-threshold
int --dp-sync-interval
int --dbo-prefill-token-threshold
bool --disable-nccl-for-dp-synchronization
bool --enable-eplb
json --eplb-config
text --expert-placement-strategy = linear round_robin
int --max-parallel-loading-workers
bool --ray-workers-use-nsight
bool --disable-custom-all-reduce
text --worker-cls
text --worker-extension-cls
bool --enable-fault-tolerance
json --fault-tolerance-config
int --block-size
float --gpu-memory-utilization --device-memory-utilization
size --kv-cache-memory-bytes
text --kv-cache-dtype = auto bfloat16 float16 fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc fp8_per_token_head
    int4_per_token_head int8_per_token_head nvfp4 nvfp4_4over6 nvfp4_ds_mla turboquant_3bit_nc
    turboquant_4bit_nc turboquant_k3v4_nc turboquant_k8v4 ultraquant_4bit
int --num-gpu-blocks-override
bool --enable-prefix-caching
text --prefix-caching-hash-algo = sha256 sha256_cbor xxhash xxhash_cbor
int --prefix-cache-retention-interval
text+ --kv-cache-dtype-skip-layers
bool --kv-sharing-fast-prefill
bool --swa-bounded-replay
text --mamba-cache-dtype = auto bfloat16 float16 float32
text --mamba-ssm-cache-dtype = auto bfloat16 float16 float32
int --mamba-block-size
int --prefix-match-unit
text --mamba-cache-mode = align none
bool --enable-mamba-shared-prefix-checkpoint
int --replayssm-buffer-len
bool --use-replayssm
float --kv-offloading-size
text --kv-offloading-backend = lmcache native
text --offload-backend = auto prefetch uva
float --cpu-offload-gb
text+ --cpu-offload-params
int --offload-group-size
int --offload-num-in-group
int --offload-prefetch-step
text+ --offload-params
bool --language-model-only
json --limit-mm-per-prompt
bool --enable-mm-embeds
json --media-io-kwargs
json --mm-processor-kwargs
float --mm-processor-cache-gb
text --mm-processor-cache-type = lru shm
text --mm-hasher-algorithm = blake3 sha256 sha512
int --mm-shm-cache-max-object-size-mb
bool --mm-encoder-only
text --mm-encoder-tp-mode = data weights
text --mm-encoder-attn-backend
text --mm-encoder-attn-dtype = fp8
text --mm-encoder-fp8-scale-path
text --mm-encoder-fp8-scale-save-path
float --mm-encoder-fp8-scale-save-margin
bool --interleave-mm-strings
bool --skip-mm-profiling
float --video-pruning-rate
text --video-pruning-method = evs vidcom2
text --mm-tensor-ipc = direct_rpc torch_shm
text --mm-processor-device = auto cpu
float --mm-ipc-gpu-memory-gb
bool --mm-device-do-normalize
bool --enable-lora
int --max-loras
int --max-lora-rank = 1 8 16 32 64 128 256 320 512
text --lora-dtype = auto bfloat16 float16
bool --enable-tower-connector-lora
int --max-cpu-loras
bool --fully-sharded-loras
text+ --lora-target-modules
json --default-mm-loras
bool --specialize-active-lora
bool --enable-mixed-moe-lora-format
bool --enable-moe-shared-loras
int --max-lora-cls-labels
json --logging-config
text --log-level = CRITICAL ERROR WARNING INFO DEBUG NOTSET
text --log-config-file
text --show-hidden-metrics-for-version
text --otlp-traces-endpoint
text+ --collect-detailed-traces = all model worker
text --per-request-spec-decode-metrics = detailed none summary
bool --kv-cache-metrics
float --kv-cache-metrics-sample
json --custom-histogram-buckets
bool --cudagraph-metrics
bool --enable-layerwise-nvtx-tracing
bool --enable-mfu-metrics
bool --enable-logging-iteration-details
text --jit-monitor-mode = error warn
bool --jit-monitor-verbose
size --max-num-batched-tokens
size --max-num-scheduled-tokens
int --max-num-seqs
int --max-num-active-seqs
int --max-num-queued-reqs
size --max-num-queued-tokens
int --long-prefill-token-threshold
bool --long-prefill-token-threshold-adaptive
text --scheduling-policy = fcfs priority
bool --enable-chunked-prefill
bool --disable-chunked-mm-input
text --scheduler-cls
bool --scheduler-reserve-full-isl
float --watermark
int --prefill-schedule-interval
bool --disable-hybrid-kv-cache-manager
bool --async-scheduling
int --stream-interval
int+ --cudagraph-capture-sizes
int --max-cudagraph-capture-size
json --ir-op-priority
bool --enable-flashinfer-autotune
text --moe-backend = aiter aiter_mega_moe aiter_triton_mxfp4_bf16 auto b12x batched_triton cutlass deep_gemm
    deep_gemm_mega_moe emulation flashinfer_b12x flashinfer_cutedsl flashinfer_cutlass
    flashinfer_moe_ep_cutedsl flashinfer_moe_ep_mega_deep_gemm flashinfer_trtllm flydsl hpc humming marlin
    rdna3 triton triton_unfused
text --linear-backend = aiter auto b12x conch cutlass deep_gemm emulation exllama fbgemm flashinfer_b12x
    flashinfer_cudnn flashinfer_cutedsl flashinfer_cutlass flashinfer_trtllm humming machete marlin torch
    triton xpu xpu_woq
text --sparse-indexer-topk-backend = aiter auto cooperative deep_select flashinfer per_row persistent torch
json --speculative-config -sc
text --spec-method = bailing_hybrid_mtp bailing_hybrid_v3_mtp custom_class deepseek_mtp dflash dots3_note_mtp
    draft_model dspark eagle eagle3 ernie_mtp exaone4_5_mtp exaone_moe_mtp extract_hidden_states gemma4_mtp
    glm4_moe_lite_mtp glm4_moe_mtp glm5_next_mtp glm_ocr_mtp hy_v3_mtp hy_v4_mtp inkling_mtp kimi_k3_mtp
    longcat_flash_mtp medusa mimo_mtp mimo_v2_mtp minimax_m3_mtp mlp_speculator mtp nemotron_h_mtp ngram
    ngram_gpu pangu_ultra_moe_mtp qwen3_5_mtp qwen3_next_mtp qwen4_exp_mtp step3p5_mtp suffix
text --spec-model
int --spec-tokens
json --watermark-config
json --diffusion-config -dc
json --kv-transfer-config
json --kv-events-config
json --ec-transfer-config
json --ec-manager-config
json --compilation-config -cc
json --attention-config -ac
json --engram-config
json --reasoning-config
json --kernel-config
text --additional-config
json --structured-outputs-config
json --aux-output-config
json --profiler-config
text --optimization-level
text --performance-mode = balanced interactivity throughput
json --weight-transfer-config
switch --disable-log-stats
switch --aggregate-engine-logging
bool --fail-on-environ-validation
int --shutdown-timeout
text --gdn-prefill-backend = flashinfer triton cutedsl aiter_flydsl
text --kda-prefill-backend = auto triton flashkda flashinfer fused
text --kda-decode-backend = auto native flashinfer triton
bool --enable-log-requests
"""
