from urllib.parse import urljoin

from controlled_rollout.page_address import endpoint_page_url


def test_the_page_of_an_endpoint_is_below_airflow_s_base_address() -> None:
    page = endpoint_page_url("controlled_rollout_default", "digits")
    assert urljoin("https://airflow.example/base/", page) == (
        "https://airflow.example/base/plugin/controlled-rollout/controlled_rollout_default/digits"
    )


def test_a_name_of_a_connection_leads_to_no_other_place() -> None:
    assert endpoint_page_url("../a b?c#d", "digits", "v2") == (
        "plugin/controlled-rollout/..%2Fa%20b%3Fc%23d/digits?version=v2"
    )
