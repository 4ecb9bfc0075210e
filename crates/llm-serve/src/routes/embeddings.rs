//! `/v1/embeddings`, `/v1/score` and `/v1/rerank`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llm_engine::Pending;

use super::json;
use crate::app::App;
use crate::body::read;
use crate::error::{ApiError, Result};
use crate::prepare::chat::{Prompt, conversation, encode as encode_chat};
use crate::prepare::completion::encode;
use crate::prepare::{fit, in_range};
use crate::wire::embedding::{Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage, Encoding, Numbers};
use crate::wire::json::{TextOrIds, Texts, parse};
use crate::wire::score::{Ranked, RankedDocument, RerankRequest, RerankResponse, Score, ScoreRequest, ScoreResponse};
use crate::wire::usage::Usage;

/// The maximum number of texts of a request.
const MAX_TEXTS: usize = 2048;

/// The vectors of texts.
#[utoipa::path(post, path = "/v1/embeddings", request_body = EmbeddingRequest,
    responses((status = 200, description = "The embeddings", body = EmbeddingResponse)))]
pub(super) async fn embeddings(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read(&headers, body, app.limits()).await?;
    let shared = Arc::clone(&app);
    let (request, model, texts) = app
        .work
        .run(move || {
            let mut request: EmbeddingRequest = parse(&body)?;
            let model = shared.select(request.model.as_deref())?.name;
            in_range("dimensions", request.dimensions.unwrap_or(1), 1..=shared.info.hidden_size)?;
            let input = std::mem::replace(&mut request.input, Texts::Ids(Vec::new()));
            Ok((request, model, inputs(&shared, input)?))
        })
        .await?;
    let tokens = texts.iter().map(Vec::len).sum();
    let mut data = Vec::with_capacity(texts.len());
    for (index, ids) in texts.into_iter().enumerate() {
        let vector = wait(app.engine.embed(ids, app.pooling)?).await?;
        let vector = normalized(vector, request.dimensions);
        let embedding = match request.encoding_format.unwrap_or_default() {
            Encoding::Float => Numbers::Float(vector),
            Encoding::Base64 => {
                Numbers::Base64(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
            }
        };
        data.push(Embedding { object: "embedding", index, embedding });
    }
    let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    json(&EmbeddingResponse { object: "list", model, data, usage })
}

/// The scores of texts or conversations by a reward model.
#[utoipa::path(post, path = "/v1/score", request_body = ScoreRequest,
    responses((status = 200, description = "The scores", body = ScoreResponse)))]
pub(super) async fn score(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read(&headers, body, app.limits()).await?;
    let shared = Arc::clone(&app);
    let (model, texts) = app
        .work
        .run(move || {
            let request: ScoreRequest = parse(&body)?;
            let model = shared.select(request.model.as_deref())?.name;
            let texts = match (request.input, request.messages) {
                (Some(input), None) => inputs(&shared, input)?,
                (None, Some(conversations)) => {
                    in_range("messages", conversations.len(), 1..=MAX_TEXTS)?;
                    let ids = conversations.into_iter().map(|messages| {
                        let conversation = conversation(messages, Vec::new(), None)?;
                        let prompt = Prompt { conversation, generation_prompt: false, open: false };
                        fit(&shared, encode_chat(&shared, &prompt)?.0, None, "messages", 0)
                    });
                    ids.collect::<Result<_>>()?
                }
                _ => return Err(ApiError::invalid("input", "give either \"input\" or \"messages\"")),
            };
            Ok((model, texts))
        })
        .await?;
    let (scores, usage) = scores(&app, texts).await?;
    let data = scores.into_iter().enumerate().map(|(index, score)| Score { index, object: "score", score });
    let (id, created) = (crate::ids::id("score-"), crate::ids::now());
    json(&ScoreResponse { id, object: "list", created, model, data: data.collect(), usage })
}

/// Orders documents by how well they answer a query: by the score of a reward model, else by the cosine of their embeddings.
#[utoipa::path(post, path = "/v1/rerank", request_body = RerankRequest,
    responses((status = 200, description = "The documents, the best first", body = RerankResponse)))]
pub(super) async fn rerank(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Result<Response> {
    let body = read(&headers, body, app.limits()).await?;
    let shared = Arc::clone(&app);
    let (request, model, query, documents) = app
        .work
        .run(move || {
            let request: RerankRequest = parse(&body)?;
            let model = shared.select(request.model.as_deref())?.name;
            in_range("documents", request.documents.len(), 1..=MAX_TEXTS)?;
            in_range("top_n", request.top_n.unwrap_or(1), 1..=usize::MAX)?;
            let texts = request.documents.iter().map(|document| pair(&shared, &request.query, document.text()));
            let documents = texts.collect::<Result<Vec<_>>>()?;
            let query = match shared.info.scores {
                true => Vec::new(),
                false => {
                    fit(&shared, encode(&shared, &TextOrIds::Text(request.query.clone()), true)?, None, "query", 0)?
                }
            };
            Ok((request, model, query, documents))
        })
        .await?;
    let (scores, usage) = match app.info.scores {
        true => scores(&app, documents).await?,
        false => cosines(&app, query, documents).await?,
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(request.top_n.unwrap_or(usize::MAX));
    let with_text = request.return_documents.unwrap_or(false);
    let results = order.into_iter().map(|index| Ranked {
        index,
        relevance_score: scores[index],
        document: with_text.then(|| RankedDocument { text: request.documents[index].text().to_owned() }),
    });
    json(&RerankResponse { id: crate::ids::id("rerank-"), model, results: results.collect(), usage })
}

/// The token ids of texts.
fn inputs(app: &App, input: Texts) -> Result<Vec<Vec<u32>>> {
    let entries = input.entries("input")?;
    in_range("input", entries.len(), 1..=MAX_TEXTS)?;
    entries.iter().map(|entry| fit(app, encode(app, entry, true)?, None, "input", 0)).collect()
}

/// What is scored or embedded for a document: the conversation of query and answer for a reward model, else the document.
fn pair(app: &App, query: &str, document: &str) -> Result<Vec<u32>> {
    let ids = match (app.info.scores, app.engine.tokenizer().has_chat_template()) {
        (true, true) => {
            use llm_tokenizer::ChatMessage;
            let messages = vec![ChatMessage::user(query), ChatMessage::assistant(document)];
            let prompt = Prompt {
                conversation: conversation(messages, Vec::new(), None)?,
                generation_prompt: false,
                open: false,
            };
            encode_chat(app, &prompt)?.0
        }
        (true, false) => encode(app, &TextOrIds::Text(format!("{query}\n{document}")), true)?,
        (false, _) => encode(app, &TextOrIds::Text(document.to_owned()), true)?,
    };
    fit(app, ids, None, "documents", 0)
}

async fn scores(app: &App, texts: Vec<Vec<u32>>) -> Result<(Vec<f32>, Usage)> {
    let usage = usage(&texts);
    let mut scores = Vec::with_capacity(texts.len());
    for ids in texts {
        scores.push(wait(app.engine.score(ids)?).await?);
    }
    Ok((scores, usage))
}

async fn cosines(app: &App, query: Vec<u32>, documents: Vec<Vec<u32>>) -> Result<(Vec<f32>, Usage)> {
    let mut usage = usage(&documents);
    usage.prompt_tokens += query.len();
    usage.total_tokens += query.len();
    let query = normalized(wait(app.engine.embed(query, app.pooling)?).await?, None);
    let mut scores = Vec::with_capacity(documents.len());
    for ids in documents {
        let vector = normalized(wait(app.engine.embed(ids, app.pooling)?).await?, None);
        scores.push(vector.iter().zip(&query).map(|(a, b)| a * b).sum());
    }
    Ok((scores, usage))
}

fn usage(texts: &[Vec<u32>]) -> Usage {
    let tokens = texts.iter().map(Vec::len).sum();
    Usage { prompt_tokens: tokens, total_tokens: tokens, ..Usage::default() }
}

async fn wait<T>(pending: Pending<T>) -> Result<T> {
    pending.get().await.map_err(|error| ApiError::of(error, "input"))
}

/// The first components, all if there is no number, with the length 1.
fn normalized(mut vector: Vec<f32>, dimensions: Option<usize>) -> Vec<f32> {
    vector.truncate(dimensions.unwrap_or(usize::MAX));
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0. {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}
