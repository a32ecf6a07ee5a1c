"""The authors' graph, as their code computes it, for any batch and any number of layers.

Their code keeps one pooling matrix per slot of the batch and one fixed depth; the matrix is shared
here, which is what one slot of theirs computes. Everything else is kept, with its faults: the L2
norm runs over the nodes and not over the channels, the rows of the smoothness matrix are all
equal, and the scorer that chooses queries gets no gradient. The collapse that follows is what
`gptr demo` shows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

NODES = (196, 120, 100, 80, 70, 60, 50)
"""Cells of the 14 x 14 grid, and groups after each layer."""
SIDE, STRIDE = 224, 16


def normalize_nodes(x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    """L2 normalisation over the nodes (the default axis of ``F.normalize``)."""
    return nn.functional.normalize(x, dim=1)


class OfficialGraph(nn.Module):
    """The gestalt-perception graph of the published code.

    Parameters
    ----------
    d_model
        Width (256 in the paper's code).
    layers
        Encoder layers, at most six.
    """

    def __init__(self, d_model: int = 256, layers: int = 6, dropout: float = 0.1) -> None:
        super().__init__()
        if not 1 <= layers <= len(NODES) - 1:
            raise ValueError(f"layers={layers}: the official graph has 1 to {len(NODES) - 1}")
        self.color_proj = nn.Linear(9, d_model)
        self.pos_proj = nn.Linear(4, d_model)
        self.canny_tdlr_proj = nn.Linear(16, d_model // 2)
        self.canny_proj = nn.Linear(2 * d_model, d_model)
        self.pool = nn.ParameterList(
            nn.Parameter(torch.rand(NODES[i], NODES[i + 1])) for i in range(layers)
        )
        self.self_attn_0 = nn.MultiheadAttention(d_model, 4, dropout, batch_first=True)
        self.dropout_0 = nn.Dropout(dropout)
        self.weight_Wco = nn.Parameter(torch.rand(1))
        self.weight_Wpo = nn.Parameter(torch.rand(1))
        self.weight_Wc = nn.Parameter(torch.rand(1))

    def embed(
        self, patch: Float[Tensor, "B N 13"], canny: Float[Tensor, "B N 64"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return colour (B, N, D), place (B, N, D) and border (B, N, 2 D) embeddings."""
        colour = normalize_nodes(self.color_proj(patch[..., :9]))
        place = normalize_nodes(self.pos_proj(patch[..., 9:]))
        borders = [normalize_nodes(self.canny_tdlr_proj(side)) for side in canny.split(16, dim=-1)]
        return colour, place, torch.cat(borders, -1)

    def law_step(
        self, layer: int, colour: Tensor, place: Tensor, border: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Apply the three laws and pool; returns colour, place, border and border token."""
        S = torch.softmax(self.pool[layer], dim=1)

        def pool(x: Tensor) -> Tensor:
            return normalize_nodes(S.T @ x)

        new_colour = pool(torch.softmax(colour @ colour.transpose(1, 2), -1) @ colour)
        new_place = pool(torch.softmax(place @ place.transpose(1, 2), -1) @ place)
        top, down, left, right = border.chunk(4, -1)
        strengths = []
        for a, b in ((top, down), (left, right)):
            pair = torch.stack((a, b), 2)
            gram = torch.softmax(pair @ pair.transpose(2, 3), -1)
            strengths += [gram[:, :, 0, 1], gram[:, :, 1, 0]]
        strength = torch.stack(strengths, -1).amax(-1)
        rows = strength[:, None, :].expand(-1, strength.shape[1], -1)
        new_border = pool(rows @ border)
        return new_colour, new_place, new_border, self.canny_proj(new_border)

    def group_tokens(self, patch: Tensor, canny: Tensor) -> list[dict[str, Float[Tensor, "B K D"]]]:
        """Return the tokens of every law and layer, before attention among them."""
        colour, place, border = self.embed(patch, canny)
        out = []
        for layer in range(len(self.pool)):
            colour, place, border, token = self.law_step(layer, colour, place, border)
            out.append({"similarity": colour, "proximity": place, "smoothness": token})
        return out

    def attend(self, tokens: dict[str, Tensor]) -> Float[Tensor, "B 3K D"]:
        """Weigh the laws and let their tokens attend to each other."""
        T = torch.cat(
            (
                self.weight_Wco * tokens["similarity"],
                self.weight_Wpo * tokens["proximity"],
                self.weight_Wc * tokens["smoothness"],
            ),
            1,
        )
        attended: Tensor = self.dropout_0(self.self_attn_0(T, T, T, need_weights=False)[0])
        return attended


class OfficialEncoderLayer(nn.Module):
    """DETR's post-norm encoder layer."""

    def __init__(self, d_model: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d_model, ffn), nn.Linear(ffn, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, hidden: Tensor | None) -> Tensor:
        """Return the next states; ``hidden`` (B, N) marks padding."""
        q = x + position
        update = self.self_attn(q, q, x, key_padding_mask=hidden, need_weights=False)[0]
        x = self.norm1(x + self.dropout(update))
        update = self.linear2(self.dropout(nn.functional.relu(self.linear1(x))))
        out: Tensor = self.norm2(x + self.dropout(update))
        return out


class OfficialEncoder(nn.Module):
    """Encoder and query content of the published code.

    Parameters
    ----------
    queries
        Query contents chosen, and rows cut from the group tokens (50 in their code).
    """

    def __init__(
        self, d_model: int = 256, heads: int = 8, ffn: int = 512, layers: int = 6,
        dropout: float = 0.1, queries: int = 50,
    ) -> None:  # fmt: skip
        super().__init__()
        self.queries = queries
        self.graph = OfficialGraph(d_model, layers, dropout)
        self.layers = nn.ModuleList(
            OfficialEncoderLayer(d_model, heads, ffn, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.proj_1 = nn.Linear(d_model, 1)
        self.self_attn = nn.MultiheadAttention(d_model, 1, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B N D"], position: Float[Tensor, "B N D"],
        patch: Float[Tensor, "B 196 13"], canny: Float[Tensor, "B 196 64"],
        hidden: Tensor | None = None,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B Q D"]]:  # fmt: skip
        """Return memory and query content.

        Parameters
        ----------
        x, position
            Image tokens and their position code.
        patch
            Colour moments (9) and cell box (4) of the 14 x 14 cells.
        canny
            Edge map along top, down, left and right border, 16 values each.
        hidden
            (B, N) True on padding.
        """
        outputs = []
        laws = self.graph.group_tokens(patch, canny)
        for layer, tokens in zip(self.layers, laws, strict=True):
            T = self.graph.attend(tokens)
            x = x + torch.softmax(x @ T.transpose(1, 2), -1) @ T
            x = layer(x, position, hidden)
            outputs.append(x)
        memory = self.norm(torch.stack(outputs).sum(0))
        first = laws[0]["similarity"] + laws[0]["proximity"] + laws[0]["smoothness"]
        Z = torch.cat((first, memory), 1)
        Z = self.dropout(self.self_attn(Z, Z, Z, need_weights=False)[0])[:, self.queries :]
        score = torch.softmax(self.proj_1(Z), 1).squeeze(-1)
        order = torch.sort(score, descending=True).indices[:, : self.queries]
        content = torch.gather(Z, 1, order[..., None].expand(-1, -1, Z.shape[-1]))
        return memory, content
