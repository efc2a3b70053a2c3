"""Every metric of vLLM 0.32.0, as data: `KIND NAME BUCKETS HELP`, one a line, in scrape order.

Recorded from the `/metrics` of a real 0.32.0 engine; the consumer and connector rows were read in its
sources. 0.33 has the same set by its sources, unverified. A ~ stands for an extra space at that place;
an indented line continues the one above. Nothing but data is here.
"""

METRICS = """
counter vllm:estimated_flops_per_gpu - Estimated number of floating point operations per GPU (for Model Flops
    Utilization calculations).
counter vllm:estimated_read_bytes_per_gpu - Estimated number of bytes read from memory per GPU (for Model Flops
    Utilization calculations).
counter vllm:estimated_write_bytes_per_gpu - Estimated number of bytes written to memory per GPU (for Model
    Flops Utilization calculations).
gauge vllm:num_requests_running - Number of requests in model execution batches.
gauge vllm:num_requests_waiting - Number of requests waiting to be processed.
gauge vllm:num_requests_waiting_by_reason - Number of waiting requests by reason. Reason labels: 'capacity' =
    waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer,
    blocked status). Sum of all reasons equals vllm:num_requests_waiting.
gauge vllm:engine_sleep_state - Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine
    is awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.
gauge vllm:kv_cache_usage_perc - KV-cache usage. 1 means 100 percent usage.
counter vllm:prefix_cache_queries - Prefix cache queries, in terms of number of queried tokens.
counter vllm:prefix_cache_hits - Prefix cache hits, in terms of number of cached tokens.
counter vllm:external_prefix_cache_queries - External prefix cache queries from KV connector cross-instance
    cache sharing, in terms of number of queried tokens.
counter vllm:external_prefix_cache_hits - External prefix cache hits from KV connector cross-instance cache
    sharing, in terms of number of cached tokens.
counter vllm:mm_cache_queries - Multi-modal cache queries, in terms of number of queried items.
counter vllm:mm_cache_hits - Multi-modal cache hits, in terms of number of cached items.
counter vllm:num_preemptions - Cumulative number of preemption from the engine.
counter vllm:prompt_tokens - Number of prefill tokens processed.
counter vllm:prompt_tokens_by_source - Number of prompt tokens by source.
counter vllm:prompt_tokens_cached - Number of cached prompt tokens (local + external).
counter vllm:prompt_tokens_cached_by_source - Prefix-cache hit tokens by the cache tier that supplied them:
    device (local HBM), host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or
    external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits +
    vllm:external_prefix_cache_hits.
counter vllm:generation_tokens - Number of generation tokens processed.
counter vllm:request_success - Count of successfully processed requests.
counter vllm:admission_rejections - Number of admission attempts rejected by a queue limit, by reason.
histogram vllm:request_prompt_tokens request_tokens Number of prefill tokens processed.
histogram vllm:request_generation_tokens request_tokens Number of generation tokens processed.
histogram vllm:iteration_tokens_total iteration_tokens Histogram of number of tokens per engine_step.
histogram vllm:request_max_num_generation_tokens request_tokens Histogram of maximum number of requested
    generation tokens.
histogram vllm:request_params_n params_n Histogram of the n request parameter.
histogram vllm:request_params_max_tokens request_tokens Histogram of the max_tokens request parameter.
histogram vllm:time_to_first_token_seconds time_to_first_token Histogram of time to first token in seconds.
histogram vllm:inter_token_latency_seconds inter_token_latency Histogram of inter-token latency in seconds.
histogram vllm:request_time_per_output_token_seconds inter_token_latency Histogram of
    time_per_output_token_seconds per request.
histogram vllm:e2e_request_latency_seconds request_latency Histogram of e2e request latency in seconds.
histogram vllm:request_queue_time_seconds request_latency Histogram of time spent in WAITING phase for request.
histogram vllm:request_inference_time_seconds request_latency Histogram of time spent in RUNNING phase for
    request.
histogram vllm:request_prefill_time_seconds request_latency Histogram of time spent in PREFILL phase for
    request.
histogram vllm:request_decode_time_seconds request_latency Histogram of time spent in DECODE phase for request.
histogram vllm:request_num_preemptions preemptions Histogram of the number of times a request was preempted.
histogram vllm:request_prefill_kv_computed_tokens request_tokens Histogram of new KV tokens computed during
    prefill (excluding cached tokens).
gauge vllm:cache_config_info - Information of the LLMEngine CacheConfig
counter http_requests - Total number of requests by method, status and handler.
summary http_request_size_bytes - Content length of incoming requests by handler. Only value of header is
    respected. Otherwise ignored. No percentile calculated.~
summary http_response_size_bytes - Content length of outgoing responses by handler. Only value of header is
    respected. Otherwise ignored. No percentile calculated.~
histogram http_request_duration_highr_seconds http_highr Latency with many buckets but no API specific labels.
    Made for more accurate percentile calculations.~
histogram http_request_duration_seconds http Latency with only few buckets by handler. Made to be only used if
    aggregation by handler is important.~
"""

CONSUMER_METRICS = """
gauge vllm:num_requests_kv_fetch_by_stage - Number of waiting requests by async KV load stage. Stage labels:
    'waiting_to_start' = needs an async KV load that has not started; 'in_progress' = load started and not yet
    reported finished; 'completed_waiting' = load finished, request not running yet.
"""

CONNECTOR_METRICS = """
histogram vllm:nixl_xfer_time_seconds nixl_xfer Histogram of transfer duration for NIXL KV Cache transfers.
histogram vllm:nixl_post_time_seconds nixl_post Histogram of transfer post time for NIXL KV Cache transfers.
histogram vllm:nixl_bytes_transferred nixl_bytes Histogram of bytes transferred per NIXL KV Cache transfers.
histogram vllm:nixl_num_descriptors nixl_descriptors Histogram of number of descriptors per NIXL~ KV Cache
    transfers.
counter vllm:nixl_num_failed_transfers - Number of failed NIXL KV Cache transfers, including handshake and
    notification failures. NOTE: KV expiry is tracked separately in vllm:nixl_num_kv_expired_reqs.
counter vllm:nixl_num_failed_notifications - Number of failed NIXL KV Cache notifications. Retained for
    compatibility; these failures are also included in vllm:nixl_num_failed_transfers.
counter vllm:nixl_num_kv_expired_reqs - Number of requests that had their KV expire. NOTE: This metric is
    tracked on the P instance.
counter vllm:nixl_num_notifications_after_expiry - Number of completion notifications for requests that were
    no longer tracked, usually because their KV lease expired. The KV blocks may have been reused before the
    transfer finished. Counted per notification (one per remote rank), not per request.
"""

CACHE_CONFIG = """
_block_size_resolved=True block_size=128 cache_dtype=auto cache_hit_alignment_tokens=None
effective_attention_block_size=128 enable_mamba_shared_prefix_checkpoint=False enable_prefix_caching=True
gpu_memory_utilization=0.92 hash_block_size=None is_attention_free=False kv_cache_dtype_skip_layers=[]
kv_cache_layout=None kv_cache_max_concurrency=512.0 kv_cache_memory_bytes=1073741824 kv_cache_size_tokens=524288
kv_offloading_backend=native kv_offloading_size=None kv_sharing_fast_prefill=False mamba_block_size=None
mamba_cache_dtype=auto mamba_cache_mode=none mamba_page_size_padded=None mamba_ssm_cache_dtype=float32
num_cpu_blocks=None num_gpu_blocks=4096 num_gpu_blocks_override=None prefix_cache_retention_interval=0
prefix_caching_hash_algo=sha256 prefix_match_unit=None replayssm_buffer_len=16 skip_page_size_padded=None
sliding_window=None swa_bounded_replay=True use_kda_recoverssm=False use_replayssm=False
user_specified_block_size=False
"""
