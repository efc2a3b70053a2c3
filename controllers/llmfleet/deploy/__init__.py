"""LLMCluster -> parse -> build objects -> diff -> plan -> execute -> status: the life of one instance, from create to
drain."""
