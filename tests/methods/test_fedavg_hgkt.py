"""FedAvg + HGKT: HGKT's stage I at every centre, FedAvg's averaging and adoption between the rounds."""

import torch

from vfmgl_lib.federation.rounds import run_rounds


def test_stage_one_is_hgkt_s_and_the_mean_is_adopted(federation, received):
    (clients, server), (hgkt, _) = federation("nuclei", "fedavg_hgkt"), federation("nuclei", "hgkt")
    updates = received(server)
    (done,) = run_rounds(clients, server, 1)
    assert server.sends_initial
    for client, other in zip(clients, hgkt, strict=True):
        other.run_round(1, None)
        assert all(torch.equal(client.stage_one_state[name], tensor) for name, tensor in other.student.state_dict().items())
        assert client.last_stage == "I" and all("match_loss" in row for row in client.log.steps)
    weights = [len(client.data) for client in clients]
    for name, parameter in clients[0].student.named_parameters():
        mean = sum(w * update.state[name].double() for w, update in zip(weights, updates, strict=True)) / sum(weights)
        torch.testing.assert_close(done.shared[name].double(), mean, rtol=1e-6, atol=1e-8)
        assert all(torch.equal(dict(client.student.named_parameters())[name], done.shared[name]) for client in clients)
        assert dict(clients[0].hgkt.model.student.named_parameters())[name] is parameter, "HGKT goes on with the adopted student"
