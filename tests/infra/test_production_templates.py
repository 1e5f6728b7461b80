"""The templates of production against the code that they run and watch, and against each other."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest

import producer.__main__ as producer_command
import query_api.__main__ as query_command
from infra.local import stacks
from producer import collector, posts
from producer.client import EventProducer, ProducerSettings
from producer.collector import CollectorSettings
from query_api.routes import ENDPOINTS
from query_api.settings import ApiSettings
from stream_consumer import metrics
from stream_consumer.consume import Outcome
from stream_consumer.generations import FIRST, generation_of
from stream_consumer.metrics import Metric
from tests.infra.resolving import Resolved, declared

REPOSITORY = stacks.TEMPLATES.parents[1]
#: In the order in which their stacks are made: each takes outputs of those before it only.
ORDER = ("data", "archive", "consumer", "compaction", "web", "edge", "monitoring")
STAGES = ("dev", "staging", "prod")
#: What the deploy command makes itself.
MADE = {"Stage", "CodeBucket", "CodeKey", "Image"}
#: Of one template's body in a request.
LARGEST_BODY = 51_200
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/liveinsight:1"
ALARM = "AWS::CloudWatch::Alarm"


def path(template: str) -> Path:
    return stacks.TEMPLATES / f"{template}.yaml"


def stage_file(stage: str) -> dict[str, dict[str, str]]:
    return json.loads((stacks.TEMPLATES / "stages" / f"{stage}.json").read_text(encoding="utf-8"))


def resolved(template: str, stage: str = "prod", **parameters: str) -> Resolved:
    return Resolved(
        path(template), {"Stage": stage, "Image": IMAGE, **stage_file(stage).get(template, {}), **parameters}
    )


def everything(stage: str = "prod") -> dict[str, Resolved]:
    return {template: resolved(template, stage) for template in ORDER}


# What the deploy command relies on.


def test_every_template_is_known_takes_a_stage_and_fits_into_one_request() -> None:
    assert {found.stem for found in stacks.TEMPLATES.glob("*.yaml")} == set(ORDER)
    for template in ORDER:
        assert "Stage" in declared(path(template))["Parameters"], template
        assert path(template).stat().st_size < LARGEST_BODY, template


def test_what_a_template_must_be_given_is_made_by_the_deploy_or_an_output_of_a_stack_before() -> None:
    known = set(MADE)
    for template in ORDER:
        written = declared(path(template))
        needed = {name for name, parameter in written["Parameters"].items() if "Default" not in parameter}
        assert needed <= known, template
        known |= set(written["Outputs"])


def test_the_outputs_by_which_others_find_their_way_are_there() -> None:
    for template, names in {
        "consumer": {"FunctionName", "FunctionArn", "AliasName"},
        "web": {"ClusterName", "CollectorServiceName", "ApiServiceName", "LoadBalancerDns"},
        "edge": {"CollectorUrl", "ApiUrl"},
        "monitoring": {"DashboardUrl", "AlarmTopicArn"},
    }.items():
        assert names <= set(resolved(template).outputs), template


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_file_says_what_its_templates_take(stage: str) -> None:
    for template, given in stage_file(stage).items():
        parameters = declared(path(template))["Parameters"]
        for name, value in given.items():
            parameter = parameters[name]
            assert isinstance(value, str), name
            assert value in [str(one) for one in parameter.get("AllowedValues", [value])], name
            assert re.fullmatch(parameter.get("AllowedPattern", ".*"), value), name
            if parameter["Type"] == "Number":
                assert parameter.get("MinValue", float(value)) <= float(value) <= parameter.get("MaxValue", 1e9), name


@pytest.mark.parametrize("stage", STAGES)
def test_collector_and_consumer_agree_on_the_lanes(stage: str) -> None:
    lanes = {
        template: stage_file(stage).get(template, {}).get("Lanes", str(taken["Lanes"]["Default"]))
        for template in ORDER
        if "Lanes" in (taken := declared(path(template))["Parameters"])
    }
    assert set(lanes) == {"consumer", "web"}
    assert len(set(lanes.values())) == 1


# The consumer.


def test_the_mapping_feeds_the_first_generation_through_an_alias_that_no_update_moves() -> None:
    consumer = resolved("consumer")
    ((alias, properties),) = consumer.of_type("AWS::Lambda::Alias").items()
    ((version, _),) = consumer.of_type("AWS::Lambda::Version").items()
    ((_, mapping),) = consumer.of_type(stacks.MAPPING).items()
    assert mapping["FunctionName"] == alias
    assert consumer.outputs["AliasName"] == properties["Name"]
    arn = f"arn:aws:lambda:us-east-1:123456789012:function:liveinsight-prod-consumer:{properties['Name']}"
    assert generation_of(arn) == FIRST
    # The same whatever the parameters say; a shift under way is in RoutingConfig.
    assert properties["FunctionVersion"] == f"{version}.Version"
    assert "RoutingConfig" not in properties
    assert declared(path("consumer"))["Resources"][version]["DeletionPolicy"] == "Retain"


def test_concurrency_is_reserved_where_the_stage_says_so() -> None:
    for reserved, expected in {"0": None, "7": "7"}.items():
        ((_, function),) = resolved("consumer", ReservedConcurrency=reserved).of_type(stacks.FUNCTION).items()
        assert function.get("ReservedConcurrentExecutions") == expected


# The services.


class Recorded(dict[str, str]):
    """An environment that notes what it is asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def environment(task: Mapping[str, Any]) -> dict[str, str]:
    (container,) = task["ContainerDefinitions"]
    return {one["Name"]: one["Value"] for one in container["Environment"]}


def tasks(stage: str = "prod", **parameters: str) -> dict[str, dict[str, Any]]:
    found = resolved("web", stage, **parameters).of_type("AWS::ECS::TaskDefinition").values()
    return {task["ContainerDefinitions"][0]["Name"]: task for task in found}


def test_the_collectors_task_sets_only_what_the_collector_reads() -> None:
    environ = Recorded(environment(tasks(AllowedOrigins="https://a.example")["collector"]))
    sending, settings = ProducerSettings.from_environ(environ), CollectorSettings.from_environ(environ)
    assert set(environ) - environ.asked == {"AWS_REGION"}
    assert (sending.stream, sending.lanes) == ("liveinsight-prod-events", 64)
    assert settings.trust_edge_headers
    assert settings.allowed_origins == ("https://a.example",)


def test_the_apis_task_sets_only_what_the_api_reads() -> None:
    environ = Recorded(environment(tasks()["api"]))
    settings = ApiSettings.from_environ(environ)
    assert set(environ) <= environ.asked
    tables = settings.tables
    assert {tables.sessions, tables.session_events, tables.rollups} == {
        f"liveinsight-prod-{table}" for table in ("sessions", "session-events", "rollups")
    }
    assert settings.region == "us-east-1"
    assert settings.read_keys
    assert (settings.cache_url or "").startswith("rediss://")
    without = ApiSettings.from_environ(environment(tasks(CacheNodeType="none", ReadKeys="off")["api"]))
    assert (without.cache_url, without.read_keys) == (None, False)


@pytest.mark.parametrize(("service", "command"), [("collector", producer_command), ("api", query_command)])
def test_a_task_runs_a_command_that_serves_where_the_load_balancer_asks(
    monkeypatch: pytest.MonkeyPatch, service: str, command: Any
) -> None:
    served: list[tuple[str, tuple[str, int]]] = []
    monkeypatch.setattr(os, "environ", environment(tasks()[service]))
    monkeypatch.setattr(command, "free_address", lambda host, port: (host, port))
    monkeypatch.setattr(command, "serve", lambda app, address, **_: served.append((app, address)))
    (container,) = tasks()[service]["ContainerDefinitions"]
    python, module, package, *arguments = container["Command"]
    assert (python, module) == ("python", "-m")
    assert package == command.__spec__.parent
    assert command.main(arguments) == 0
    ((_, address),) = served
    assert address == ("0.0.0.0", container["PortMappings"][0]["ContainerPort"])
    web = resolved("web")
    groups = [
        one for one in web.of_type("AWS::ElasticLoadBalancingV2::TargetGroup").values() if one["Port"] == address[1]
    ]
    assert len(groups) == 2


def collector_paths() -> set[str]:
    app = collector.create_app(EventProducer(ProducerSettings(), boto3.client("kinesis")), CollectorSettings())
    return {rule.rule for rule in app.url_map.iter_rules()}


def test_the_load_balancer_sends_to_the_collector_what_it_serves_and_the_rest_to_the_api(aws: None) -> None:
    rules = resolved("web").of_type("AWS::ElasticLoadBalancingV2::ListenerRule")
    paths = {
        name: set(condition["PathPatternConfig"]["Values"])
        for name, rule in rules.items()
        for condition in rule["Conditions"]
    }
    assert paths == {"CollectorRule": collector_paths(), "ApiRule": {"/*"}}
    assert rules["CollectorRule"]["Priority"] < rules["ApiRule"]["Priority"]
    assert not collector_paths() & {endpoint.path for endpoint in ENDPOINTS}


def test_health_is_asked_where_it_is_answered_and_five_times_before_there_is_traffic(aws: None) -> None:
    groups = resolved("web").of_type("AWS::ElasticLoadBalancingV2::TargetGroup")
    asked = {name: group["HealthCheckPath"] for name, group in groups.items()}
    assert set(asked) == {f"{service}{colour}" for service in ("Collector", "Api") for colour in ("Blue", "Green")}
    assert asked["CollectorBlue"] == asked["CollectorGreen"] == "/health"
    assert asked["CollectorBlue"] in collector_paths()
    assert asked["ApiBlue"] == asked["ApiGreen"] == "/health/"
    assert asked["ApiBlue"] in {endpoint.path for endpoint in ENDPOINTS}
    assert {group["HealthyThresholdCount"] for group in groups.values()} == {5}


def test_services_are_deployed_blue_green_with_a_way_back() -> None:
    web = resolved("web")
    services = web.of_type("AWS::ECS::Service")
    assert set(services) == {"CollectorService", "ApiService"}
    for name, service in services.items():
        role = name.removesuffix("Service")
        deployment = service["DeploymentConfiguration"]
        assert deployment["Strategy"] == "BLUE_GREEN"
        assert deployment["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
        assert deployment["Alarms"]["Enable"]
        assert deployment["Alarms"]["Rollback"]
        assert set(deployment["Alarms"]["AlarmNames"]) <= set(web.of_type(ALARM))
        (balanced,) = service["LoadBalancers"]
        assert balanced["TargetGroupArn"] == f"{role}Blue"
        assert balanced["AdvancedConfiguration"]["AlternateTargetGroupArn"] == f"{role}Green"
        assert balanced["AdvancedConfiguration"]["ProductionListenerRule"] == f"{role}Rule"
        assert "DesiredCount" not in service  # an update would undo what autoscaling has done
        rule = web.resources[f"{role}Rule"]["Properties"]["Actions"][0]["ForwardConfig"]["TargetGroups"]
        assert {one["TargetGroupArn"] for one in rule} == {f"{role}Blue", f"{role}Green"}


def test_tasks_are_arm64_unprivileged_and_read_only() -> None:
    for task in tasks().values():
        assert task["RuntimePlatform"]["CpuArchitecture"] == "ARM64"
        (container,) = task["ContainerDefinitions"]
        assert container["ReadonlyRootFilesystem"] is True
        assert f"\nUSER {container['User']}\n" in (REPOSITORY / "infra" / "Dockerfile").read_text(encoding="utf-8")


# Least privilege, and nothing public but the edge.


def statements() -> Iterator[tuple[str, dict[str, Any]]]:
    for template, found in everything().items():
        for name, role in found.of_type("AWS::IAM::Role").items():
            for policy in role.get("Policies", []):
                for statement in policy["PolicyDocument"]["Statement"]:
                    yield f"{template}.{name}", statement


def texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_a_role_names_what_it_may_do_and_on_what() -> None:
    seen = 0
    for role, statement in statements():
        seen += 1
        assert not [action for action in texts(statement["Action"]) if "*" in action], role
        if "*" in texts(statement["Resource"]):
            # X-Ray and the registry's token know no resources.
            assert set(texts(statement["Action"])) <= {
                "xray:PutTelemetryRecords",
                "xray:PutTraceSegments",
                "ecr:GetAuthorizationToken",
            }, role
    assert seen > 20


def test_the_services_may_do_what_they_do_and_no_more() -> None:
    allowed: dict[str, set[str]] = {}
    for role, statement in statements():
        allowed.setdefault(role, set()).update(texts(statement["Action"]))
    assert allowed["web.CollectorRole"] == {"kinesis:PutRecords"}
    assert allowed["web.ApiRole"] == {"dynamodb:BatchGetItem", "dynamodb:GetItem", "dynamodb:Query"}
    tables = {
        resource.rpartition(":table/")[2]
        for role, statement in statements()
        if role == "web.ApiRole"
        for resource in statement["Resource"]
    }
    assert {table.partition("/")[0] for table in tables} == {
        f"liveinsight-prod-{table}" for table in ("sessions", "session-events", "rollups")
    }
    assert not any("*" in table for table in tables)


def test_nothing_is_public_but_the_edge() -> None:
    for stage in STAGES:
        for template, found in everything(stage).items():
            for kind in ("AWS::EC2::Route", "AWS::EC2::NatGateway", "AWS::EC2::EIP", "AWS::Lambda::Url"):
                assert not found.of_type(kind), template
            for subnet in found.of_type("AWS::EC2::Subnet").values():
                assert subnet["MapPublicIpOnLaunch"] is False
            for balancer in found.of_type("AWS::ElasticLoadBalancingV2::LoadBalancer").values():
                assert balancer["Scheme"] == "internal"
            for service in found.of_type("AWS::ECS::Service").values():
                assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"
            for bucket in found.of_type("AWS::S3::Bucket").values():
                assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
            for name, group in found.of_type("AWS::EC2::SecurityGroup").items():
                (network,) = (one["CidrBlock"] for one in found.of_type("AWS::EC2::VPC").values())
                for rule in group["SecurityGroupIngress"]:
                    assert rule.get("CidrIp") in {None, network}, name
                    assert "CidrIpv6" not in rule, name
    balancer = resolved("web").resources["LoadBalancerSecurityGroup"]["Properties"]["SecurityGroupIngress"]
    assert [rule.get("SourcePrefixListId", "")[:3] for rule in balancer] == ["pl-"]


def test_the_edge_passes_the_country_that_the_collector_reads_and_keeps_what_the_api_allows() -> None:
    edge = resolved("edge")
    ((policy, properties),) = edge.of_type("AWS::CloudFront::OriginRequestPolicy").items()
    passed = properties["OriginRequestPolicyConfig"]
    assert passed["HeadersConfig"]["HeaderBehavior"] == "allViewerAndWhitelistCloudFront"
    (header,) = passed["HeadersConfig"]["Headers"]
    assert f'headers.get("{header.lower()}"' in inspect.getsource(posts)
    assert passed["CookiesConfig"] == {"CookieBehavior": "none"}
    config = edge.resources["Distribution"]["Properties"]["DistributionConfig"]
    behaviours = [config["DefaultCacheBehavior"], *config["CacheBehaviors"]]
    assert {one["OriginRequestPolicyId"] for one in behaviours} == {policy}
    events = next(one for one in config["CacheBehaviors"] if one["PathPattern"] == "/events")
    assert "POST" in events["AllowedMethods"]
    api = edge.resources[config["DefaultCacheBehavior"]["CachePolicyId"]]["Properties"]["CachePolicyConfig"]
    # Not kept unless Cache-Control says so, and apart by all that an answer depends on.
    assert (api["MinTTL"], api["DefaultTTL"]) == (0, 0)
    key = api["ParametersInCacheKeyAndForwardedToOrigin"]
    assert key["QueryStringsConfig"] == {"QueryStringBehavior": "all"}
    assert set(key["HeadersConfig"]["Headers"]) == {"Authorization", "Origin"}


def test_every_path_of_the_collector_has_a_behaviour_of_its_own_at_the_edge(aws: None) -> None:
    config = resolved("edge").resources["Distribution"]["Properties"]["DistributionConfig"]
    assert {one["PathPattern"] for one in config["CacheBehaviors"]} == collector_paths()


def test_the_firewall_refuses_floods_and_known_attacks_but_no_event_for_what_it_tells() -> None:
    ((_, firewall),) = resolved("edge").of_type("AWS::WAFv2::WebACL").items()
    statements_by_name = {rule["Name"]: rule["Statement"] for rule in firewall["Rules"]}
    assert statements_by_name["rate"]["RateBasedStatement"]["AggregateKeyType"] == "IP"
    groups = {
        name: statement["ManagedRuleGroupStatement"]
        for name, statement in statements_by_name.items()
        if "ManagedRuleGroupStatement" in statement
    }
    assert {group["VendorName"] for group in groups.values()} == {"AWS"}
    assert len(groups) == 3
    # Its rules take bodies beyond 8 kB, and addresses in them, for attacks; the collector takes 1 MiB.
    common = groups["common"]
    assert common["Name"] == "AWSManagedRulesCommonRuleSet"
    spared = common["ScopeDownStatement"]["NotStatement"]["Statement"]["ByteMatchStatement"]
    assert (spared["SearchString"], spared["PositionalConstraint"]) == ("/events", "EXACTLY")


# What is watched.


def alarms(**parameters: str) -> dict[str, dict[str, Any]]:
    return {
        name: alarm
        for template in ("web", "monitoring")
        for name, alarm in resolved(template, **(parameters if template == "monitoring" else {})).of_type(ALARM).items()
    }


def test_every_alarm_has_a_name_of_the_stage_and_a_chapter_that_says_what_to_do() -> None:
    guide = (REPOSITORY / "infra" / "README.md").read_text(encoding="utf-8")
    chapters = set(re.findall(r"^#+ (.+)$", guide, re.M))
    found = alarms()
    assert len(found) > 20
    for name, alarm in found.items():
        assert alarm["AlarmName"].startswith("liveinsight-prod-"), name
        runbook = re.search(r'Runbook: infra/README\.md, "([^"]+)"\.$', alarm["AlarmDescription"])
        assert runbook, name
        assert runbook[1] in chapters, name
    assert max(Counter(alarm["AlarmName"] for alarm in found.values()).values()) == 1


def figures(**parameters: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(namespace, metric, dimensions) of all that alarms and dashboard look at."""
    for alarm in alarms(**parameters).values():
        looked_at = [one["MetricStat"]["Metric"] for one in alarm.get("Metrics", []) if "MetricStat" in one]
        for metric in [*looked_at, *([alarm] if "MetricName" in alarm else [])]:
            yield (
                metric["Namespace"],
                metric["MetricName"],
                {d["Name"]: d["Value"] for d in metric.get("Dimensions", [])},
            )
    for widget in dashboard(**parameters)["widgets"]:
        before: list[str] = []
        for row in widget["properties"].get("metrics", []):
            named = [one for one in row if isinstance(one, str)]
            if named:
                before = [above if one == "." else one for one, above in zip(named, before or named, strict=False)]
                before += named[len(before) :]
                assert "." not in before
                yield before[0], before[1], dict(zip(before[2::2], before[3::2], strict=True))


def dashboard(**parameters: str) -> dict[str, Any]:
    ((_, found),) = resolved("monitoring", **parameters).of_type("AWS::CloudWatch::Dashboard").items()
    body: dict[str, Any] = json.loads(found["DashboardBody"])
    return body


def emitted(capsys: pytest.CaptureFixture[str], generation: str) -> set[tuple[str, str, frozenset[tuple[str, str]]]]:
    """What the consumer's own code makes CloudWatch count."""
    capsys.readouterr()
    outcome = Outcome(applied=1, quarantined=Counter({"not_json": 1}), oldest_received=1)
    metrics.emit(outcome, 1, 1.0, now_ms=2, generation=generation)
    found = set()
    for line in capsys.readouterr().out.splitlines():
        said = json.loads(line)
        for directive in said["_aws"]["CloudWatchMetrics"]:
            for names in directive["Dimensions"]:
                dimensions = frozenset((name, said[name]) for name in names)
                found |= {(directive["Namespace"], metric["Name"], dimensions) for metric in directive["Metrics"]}
    return found


@pytest.mark.parametrize("generation", ["g1", "g7"])
def test_alarms_and_dashboard_look_at_figures_that_the_consumer_emits(
    capsys: pytest.CaptureFixture[str], generation: str
) -> None:
    own = {
        (namespace, name, frozenset(dimensions.items()))
        for namespace, name, dimensions in figures(Generation=generation)
        if namespace == metrics.NAMESPACE
    }
    assert own <= emitted(capsys, generation)
    assert {name for _, name, _ in own} <= {metric.label for metric in Metric}
    (search,) = re.findall(
        r"SEARCH\('\{(\w+),([\w,]+)\} MetricName=\"(\w+)\"",
        "\n".join(
            row[0]["expression"]
            for widget in dashboard(Generation=generation)["widgets"]
            for row in widget["properties"].get("metrics", [])
            if isinstance(row[0], dict)
        ),
    )
    by_reason = {(space, name, frozenset(dict(found))) for space, name, found in emitted(capsys, generation)}
    assert (search[0], search[2], frozenset(search[1].split(","))) in by_reason
    assert search[2] == metrics.QUARANTINED_BY_REASON
    assert {name for _, name, _ in own} >= {"EventsReceived", "EventsQuarantined", "Lag", "SessionsUpserted"}


def test_alarms_and_dashboard_look_at_what_the_stacks_have() -> None:
    stage = everything()
    names = {
        "TableName": {one["TableName"] for one in stage["data"].of_type("AWS::DynamoDB::Table").values()},
        "StreamName": {one["Name"] for one in stage["data"].of_type("AWS::Kinesis::Stream").values()},
        "QueueName": {one["QueueName"] for one in stage["data"].of_type("AWS::SQS::Queue").values()},
        "FunctionName": {
            one["FunctionName"] for template in ORDER for one in stage[template].of_type(stacks.FUNCTION).values()
        },
        "DeliveryStreamName": {
            one["DeliveryStreamName"]
            for one in stage["archive"].of_type("AWS::KinesisFirehose::DeliveryStream").values()
        },
        "Resource": {"liveinsight-prod-consumer:live"},
    }
    seen = set()
    for namespace, metric, dimensions in figures():
        for name, value in dimensions.items():
            if name in names:
                seen.add(name)
                assert value in names[name], (namespace, metric)
    assert seen == set(names)


def test_a_replay_that_is_behind_wakes_nobody_and_a_promoted_one_is_watched() -> None:
    for generation, alias in {"g1": "live", "g4": "g4"}.items():
        resources = {d["Resource"] for _, _, d in figures(Generation=generation) if "Resource" in d}
        assert resources == {f"liveinsight-prod-consumer:{alias}"}


def test_log_filters_look_for_what_the_code_logs_in_groups_that_there_are() -> None:
    stage = everything()
    groups = {one["LogGroupName"] for found in stage.values() for one in found.of_type("AWS::Logs::LogGroup").values()}
    code = "\n".join(
        file.read_text(encoding="utf-8")
        for package in ("producer", "stream_consumer", "query_api")
        for file in sorted((REPOSITORY / package).rglob("*.py"))
    )
    counted = set()
    for name, log_filter in stage["monitoring"].of_type("AWS::Logs::MetricFilter").items():
        assert log_filter["LogGroupName"] in groups, name
        (transformation,) = log_filter["MetricTransformations"]
        counted.add((transformation["MetricNamespace"], transformation["MetricName"]))
        pattern = log_filter["FilterPattern"]
        if structured := re.fullmatch(r'\{ \$\.message = "([^"]+)" \}', pattern):
            assert f'"{structured[1]}"' in code, name
        else:
            level, logger, *words = pattern.replace('"', "").split()
            assert level in {"WARNING", "ERROR"}, name
            assert f'getLogger("{logger}")' in code, name
            assert all(f'"message": "{word}"' in code for word in words), name
    assert {(space, name) for space, name, _ in figures() if space.startswith("LiveInsight/")} <= counted


def test_the_duration_that_alarms_is_four_fifths_of_the_timeout() -> None:
    ((_, function),) = resolved("consumer").of_type(stacks.FUNCTION).items()
    assert alarms()["Duration"]["Threshold"] == function["Timeout"] * 1000 * 0.8


def test_every_log_is_forgotten_some_day() -> None:
    for template, found in everything().items():
        for name, group in found.of_type("AWS::Logs::LogGroup").items():
            assert int(group["RetentionInDays"]) <= 365, (template, name)


def test_only_a_stage_that_is_watched_alarms() -> None:
    for stage, expected in {"dev": "false", "prod": "true"}.items():
        assert {one["ActionsEnabled"] for one in resolved("monitoring", stage).of_type(ALARM).values()} == {expected}


# As far as the embedded AWS goes.


@pytest.mark.filterwarnings("ignore:Tried to parse")
def test_the_monitorings_stack_can_be_created_and_names_its_dashboard(aws: None) -> None:
    parameters = declared(path("monitoring"))["Parameters"]
    given = {name: name for name, parameter in parameters.items() if "Default" not in parameter}
    outputs = stacks.create_stack(
        boto3.client("cloudformation"),
        path("monitoring"),
        {**given, "Stage": "dev", **stage_file("dev")["monitoring"]},
    )
    assert outputs["DashboardUrl"].endswith("region=us-east-1#dashboards/dashboard/liveinsight-dev")
    body = boto3.client("cloudwatch").get_dashboard(DashboardName="liveinsight-dev")["DashboardBody"]
    assert json.loads(body)["widgets"]
    assert outputs["AlarmTopicArn"] in {one["TopicArn"] for one in boto3.client("sns").list_topics()["Topics"]}
