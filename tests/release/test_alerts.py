"""The alert rules, tried by Prometheus' own tool: `make test-alerts`, before each release."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.release.debian import unpacked
from tests.stack_config import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

ALERTS = PROJECT / "monitoring/alerts.yaml"
ANSWERS = 'haproxy_frontend_http_responses_total{{proxy="gateway",code="{}"}}'
CALLS = 'llm_gateway_calls_total{{model="gpt-4o",status="{}"}}'
WELL = {
    'up{job="llm-gateway"}': "1x1500",
    'haproxy_backend_active_servers{proxy="litellm-g1"}': "2x1500",
    'haproxy_backend_current_queue{proxy="litellm-g1"}': "0x1500",
    'llm_gateway_replicas{state="silent"}': "0x1500",
    ANSWERS.format("2xx"): "0+100x1500",
    ANSWERS.format("5xx"): "0+1x1500",
    CALLS.format("success"): "0+100x1500",
    CALLS.format("failure"): "0+1x1500",
    'llm_gateway_unpriced_tokens_total{model="gpt-4o"}': "0x1500",
    'llm_gateway_cost_usd_total{client="app"}': "0+0.01x1500",
}
"""A day of a stack that is well: values of a minute each, as promtool writes them."""
WRONG = {
    "GatewayUnreachable": {'up{job="llm-gateway"}': "0x1500"},
    "NoReplica": {'haproxy_backend_active_servers{proxy="litellm-g1"}': "0x1500"},
    "ReplicaSilent": {'llm_gateway_replicas{state="silent"}': "1x1500"},
    "ServerErrors": {ANSWERS.format("5xx"): "0+10x1500"},
    "RequestsWait": {'haproxy_backend_current_queue{proxy="litellm-g1"}': "3x1500"},
    "ProviderFails": {CALLS.format("failure"): "0+50x1500"},
    "TokensWithoutAPrice": {'llm_gateway_unpriced_tokens_total{model="gpt-4o"}': "0+5x1500"},
    "Spend": {'llm_gateway_cost_usd_total{client="app"}': "0+1x1500"},
}
"""What changes when each alert fires."""

pytestmark = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="promtool is in a package of Debian")


def promtool(*arguments: str) -> str:
    """What promtool says. Raises AssertionError if it finds something wrong."""
    program = unpacked("bookworm", "prometheus") / "bin/promtool"
    done = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def fires(folder: Path, series: dict[str, str], *expected: str) -> None:
    """Whether exactly these alerts fire at the end of a day. Raises AssertionError if not."""
    rules = [
        rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]
    ]
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{rule["alert"]}",alertstate="firing"}}) or vector(0)',
                "eval_time": "1490m",
                "exp_samples": [{"labels": "{}", "value": int(rule["alert"] in expected)}],
            }
            for rule in rules
        ],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", str(file))


def test_prometheus_accepts_the_rules() -> None:
    assert f"{len(WRONG)} rules found" in promtool("check", "rules", str(ALERTS))


def test_nothing_fires_while_all_is_well(tmp_path: Path) -> None:
    fires(tmp_path, WELL)


@pytest.mark.parametrize("alert", WRONG)
def test_each_alert_fires_for_what_it_is_about_and_no_other_does(alert: str, tmp_path: Path) -> None:
    fires(tmp_path, WELL | WRONG[alert], alert)
