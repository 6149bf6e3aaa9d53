"""What AIBrix and production-stack look for on the servers is there."""

from __future__ import annotations

from tests.support.kube_objects import built, container, only, pods, variables


class TestAibrix:
    def test_labels_say_what_the_server_says(self) -> None:
        deployment = only(built("aibrix"), "Deployment")
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        settings = variables(built("aibrix"))
        assert labels["model.aibrix.ai/name"] == settings["MANYLORA_SERVED_MODEL_NAME"]
        assert labels["model.aibrix.ai/port"] == "8000"
        assert labels["model.aibrix.ai/metric-port"] == settings["MANYLORA_METRICS_PORT"]
        assert labels["model.aibrix.ai/engine"] == "vllm"
        own = deployment["metadata"]["labels"]
        assert {name: labels[name] for name in own} == own
        assert {name for name in labels if "aibrix" in name} - set(own) == {"model.aibrix.ai/metric-port"}

    def test_the_service_has_the_models_name(self) -> None:
        name = variables(built("aibrix"))["MANYLORA_SERVED_MODEL_NAME"]
        assert only(built("aibrix"), "Service", name)["spec"]["ports"][0]["port"] == 8000

    def test_the_adapter_may_be_fetched_by_each_server(self) -> None:
        adapter = only(built("aibrix"), "ModelAdapter")
        labels = only(built("aibrix"), "Deployment")["spec"]["template"]["metadata"]["labels"]
        assert adapter["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        assert adapter["spec"]["baseModel"] == labels["model.aibrix.ai/name"]
        assert adapter["metadata"]["labels"]["model.aibrix.ai/name"] == adapter["metadata"]["name"]
        settings = variables(built("aibrix"))
        assert settings["MANYLORA_REGISTRY_SCOPE"] == "pod"
        allowed = settings["MANYLORA_ADAPTER_REPOSITORY"].removesuffix("*")
        assert adapter["spec"]["artifactURL"].startswith(f"huggingface://{allowed}")


class TestProductionStack:
    def test_the_controller_finds_the_servers(self) -> None:
        adapter = only(built("production-stack"), "LoraAdapter")["spec"]
        settings = variables(built("production-stack"))
        (labels, _), *_ = pods(built("production-stack"))
        assert labels["model"] == adapter["baseModel"] == settings["MANYLORA_SERVED_MODEL_NAME"]
        assert settings["MANYLORA_REGISTRY_SCOPE"] == "pod"

    def test_it_has_the_key_of_those_who_manage(self) -> None:
        adapter = only(built("production-stack"), "LoraAdapter")["spec"]
        reference = next(
            entry["valueFrom"]["secretKeyRef"]
            for entry in container("production-stack")["env"]
            if entry["name"] == "MANYLORA_ADMIN_API_KEY"
        )
        assert adapter["vllmApiKey"] == {"secretName": reference["name"], "secretKey": reference["key"]}

    def test_the_path_is_one_that_the_servers_fetch(self) -> None:
        source = only(built("production-stack"), "LoraAdapter")["spec"]["adapterSource"]
        allowed = variables(built("production-stack"))["MANYLORA_ADAPTER_REPOSITORY"].removesuffix("*")
        assert source["type"] == "local"
        assert source["adapterPath"].startswith(f"hf://{allowed}")
