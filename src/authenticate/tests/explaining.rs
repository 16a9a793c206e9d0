use super::*;

/// What is said of a request with this body, signed with `secret` and refused as `bad_signature`.
async fn causes(accounts: &Arc<Accounts>, body: &[u8], secret: &str) -> Vec<String> {
    let mut headers = HeaderMap::new();
    let timestamp = SIGNED_AT.to_string();
    let signature = sign(&Secret::new(secret.into()), &timestamp, body);
    headers.insert(&TIMESTAMP_HEADER, timestamp.parse().unwrap());
    headers.insert(&SIGNATURE_HEADER, signature.parse().unwrap());
    let account = accounts.by_path("/default").unwrap();
    accounts.explain(account, &headers, Some(Bytes::copy_from_slice(body)), Refused::BadSignature, NOW);
    let looking = tokio::spawn(Arc::clone(accounts).look_into_refused());
    let explained = async {
        loop {
            match accounts.newest_explanation() {
                Some(explanation) => break explanation.causes,
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let causes = tokio::time::timeout(Duration::from_secs(30), explained).await.expect("it is looked into");
    looking.abort();
    causes
}

#[tokio::test]
async fn a_request_that_came_before_its_secret_was_read_is_told_from_a_wrong_one() {
    let fixture = Fixture::new(&[("old", "old-secret")]);
    let accounts = Arc::new(fixture.open());
    fixture.write("new", "new-secret");
    let causes = causes(&accounts, b"{}", "new-secret").await;
    assert!(matches!(&causes[..], [one] if one.contains("secret new of account default")), "{causes:?}");
}

#[tokio::test]
async fn a_body_too_large_to_be_searched_leaves_no_empty_diagnosis() {
    let accounts = Arc::new(Fixture::new(&[("old", "old-secret")]).open());
    let causes = causes(&accounts, &[b' '; (64 << 10) + 1], "another").await;
    assert!(matches!(&causes[..], [one] if one.contains("64 KiB")), "{causes:?}");
}
